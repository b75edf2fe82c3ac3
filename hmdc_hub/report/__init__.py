"""Tables, plots and picture grids: pure functions of what the files say."""
