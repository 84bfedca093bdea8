"""What a person looks at: the report, its charts and pictures, and tables on the screen."""
