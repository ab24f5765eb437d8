"""How good an edit is: agreement with the prompts, consistency, a language model's judgement, the true result."""
