"""What is done with networks and videos once there are both; each module is a command or its pages.

predict     answers for one video or many
explain     where a non-local block looks, what speaks for a class; pictures: the same drawn
report      a run as one HTML page; charts: its figures
serve       a local web demo
check       what is wrong with a folder of videos; prepare: small copies that are fast to read
door        the requests that serve lets in
hub         publishing to the Hugging Face Hub; hub_card: its texts, leaks: what they must not give away
doctor      what this machine can do
demo        the whole job on drawn clips; draw: the clips
"""
