"""XMP that says what made a picture, in the words of the IPTC. Source: IPTC Photo Metadata Standard, Digital Source Type."""

from __future__ import annotations

from quad import __version__

_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED, COMPOSITE = f"{_TYPES}trainedAlgorithmicMedia", f"{_TYPES}compositeWithTrainedAlgorithmicMedia"


def source_type(edited: bool) -> str:
    """By a model alone, or by a model from a given picture."""
    return COMPOSITE if edited else GENERATED


def xmp_packet(edited: bool) -> str:
    """The whole packet."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        f' Iptc4xmpExt:DigitalSourceType="{source_type(edited)}" xmp:CreatorTool="quad {__version__}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
