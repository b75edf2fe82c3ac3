"""Tables, pictures and pages of scores, and scored sets side by side: pure functions of what the files say."""
