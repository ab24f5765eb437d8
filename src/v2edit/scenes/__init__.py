"""3D scenes: Gaussians, their files, their cameras, and the loop that renders, edits and reconstructs."""
