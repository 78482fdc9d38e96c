"""From recordings to memory programs: cut runs into parts, align them across probe jobs, fit exact affine sizes."""
