"""Results on disk: overlay videos, folders of PNG masks, COCO JSON."""
