"""What every role's process needs: topology, flags of security, its beginning and its end."""
