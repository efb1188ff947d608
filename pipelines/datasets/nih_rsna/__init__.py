"""Chest X-rays of NIH ChestX-ray14 with the radiologists' boxes of the RSNA challenge of 2018."""
