"""The chief: its service, coordination, leases, journal, healing and run folder."""
