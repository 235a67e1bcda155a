"""Where a picture comes from, said in its file: how it was made, that a model made it, and who vouches for that.

facts --parameters_text--> text     facts --xmp_packet--> XMP     picture, text, XMP --encode_png--> PNG --sign--> PNG with credentials
"""
