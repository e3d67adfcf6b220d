"""The cybersecurity server: scans of repositories and their findings."""
