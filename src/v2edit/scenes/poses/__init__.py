"""Structure from motion: the cameras of photographs or of a video, found by COLMAP (pycolmap).

pictures  read what was taken    frames   choose frames of a video     pairs    choose pairs to match
mapping   run COLMAP             failures say why it found nothing     writing  write the dataset
"""
