"""Twenty prompts of different lengths and kinds."""

from __future__ import annotations

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea,",
    "List three colours:",
    "Water boils at 100 degrees because",
    "Q: What is 17 + 25? A:",
    "The quick brown fox",
    "import numpy as np\n\nx = np.",
    "Dear Sir or Madam,\n\nI am writing to",
    "In 1969, the first humans",
    "A recipe for pancakes: take two eggs,",
    "The difference between a list and a tuple in Python is that",
    "Photosynthesis is the process by which",
    "She opened the door and saw",
    "SELECT name, age FROM users WHERE",
    "The three laws of thermodynamics state that energy cannot be created or destroyed, that",
    "To be, or not to be,",
    "My favourite book is",
    "The sum of the angles of a triangle",
    "Translate to French: Good morning, how are you today? I hope that you have slept well.",
]
