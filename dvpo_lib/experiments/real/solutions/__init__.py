"""Critics on solutions of GSM8K problems, trained on labels with noise and scored on clean labels."""
