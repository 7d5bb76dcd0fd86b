"""Floor 6: the same loss inside other people's trainers: one package or module for each host (docs/hosts.md)."""
