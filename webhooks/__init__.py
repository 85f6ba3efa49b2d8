"""Did it really come from them, and what does it say? No calls, no business."""
