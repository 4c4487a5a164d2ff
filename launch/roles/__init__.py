"""Common to the processes of all roles: topology, security flags, start and end."""
