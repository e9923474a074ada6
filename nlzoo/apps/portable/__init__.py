"""What travels with an exported model: files that need no nlzoo, copied as they are.

`network_nlzoo` needs torch alone; `modeling_nlzoo` and `video_processing_nlzoo` are what transformers loads.
"""
