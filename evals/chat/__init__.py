"""AlpacaEval, Arena-Hard and MT-Bench."""
