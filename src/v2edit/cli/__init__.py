"""The `v2edit` command: a table of commands, one short function each, and the reporters that print."""
