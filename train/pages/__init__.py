"""What an evaluation writes for people: report, tables, pictures."""
