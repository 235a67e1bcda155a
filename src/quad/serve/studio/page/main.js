/** The page from its first line: backends by `studio.json`. */
