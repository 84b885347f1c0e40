"""The page that people look at: its templates, its static files, and how they are rendered."""
