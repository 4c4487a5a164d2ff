"""Authentication and rights: certificates, the job's token, the rights of each role, and TLS sockets."""
