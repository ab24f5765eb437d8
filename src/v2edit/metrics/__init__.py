"""How good an edit is: by CLIP (V2Edit Sec. 4.1), by the known truth, and by a judge that looks at the frames."""
