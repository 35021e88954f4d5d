"""Results of a study for people and programs: tables, figures, reports, exported files."""
