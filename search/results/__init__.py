"""What a study found, for people and programs: tables, figures, reports, exported files."""
