"""Other people's files: judgments, answers, samples and leaderboards of the reference tools, read and written."""
