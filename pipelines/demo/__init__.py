"""The demo.

The whole pipeline on real MRI with real, general-purpose weights, in minutes on two cores.
"""
