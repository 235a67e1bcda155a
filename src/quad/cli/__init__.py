"""The command line: parse, call, show. Verbs import their rooms when they are called, so `quad run` never loads torch."""
