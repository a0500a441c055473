"""From rows to leaderboards: statistics, tables, plots and a page."""
