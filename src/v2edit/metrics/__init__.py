"""Measures of an edit: by pixels, by CLIP (V2Edit Sec. 4.1), by the known truth, and by a language model as judge."""
