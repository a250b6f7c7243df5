"""The page of the leaderboard: its frame, style and script."""
