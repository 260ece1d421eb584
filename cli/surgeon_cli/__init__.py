"""The command `surgeon`: one file per command, no computation of its own."""
