"""The studio: V2Edit in the browser, over a folder of runs, with a queue of edits."""
