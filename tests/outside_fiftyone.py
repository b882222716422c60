"""Read COCO files with FiftyOne's own loaders and print what they give; run where FiftyOne is installed, not mgdet.

    python outside_fiftyone.py annotations.json detections.json

FiftyOne keeps samples in a MongoDB server, which is no package: this stands in for its collection of samples.
"""

import json
import sys

from fiftyone.utils.coco import add_coco_labels, load_coco_detection_annotations


class Samples:
    """What `add_coco_labels` asks of a collection: an id and a size of each image, and a place for its labels."""

    def __init__(self, images):
        self.images, self.labels = images, {}

    def values(self, fields):
        taken = {
            "coco_id": [image["id"] for image in self.images],
            "id": [str(image["id"]) for image in self.images],
            "metadata.width": [image["width"] for image in self.images],
            "metadata.height": [image["height"] for image in self.images],
        }
        return [taken[field] for field in fields]

    def select(self, ids, ordered):
        by_id = {str(image["id"]): image for image in self.images}
        chosen = Samples([by_id[number] for number in ids])
        chosen.labels = self.labels
        return chosen

    def compute_metadata(self):
        pass

    def __len__(self):
        return len(self.images)

    def set_values(self, field, labels):
        for image, found in zip(self.images, labels, strict=True):
            self.labels[image["id"]] = [[d.label, d.confidence, *d.bounding_box] for d in found.detections]


def main(annotations, detections):
    _, classes, _, images, objects = load_coco_detection_annotations(annotations)
    samples = Samples(list(images.values()))
    with open(annotations) as file:
        categories = json.load(file)["categories"]
    add_coco_labels(samples, "predictions", detections, categories, coco_id_field="coco_id")
    truth = {
        number: [
            [d.label, *d.bounding_box]
            for d in (
                o.to_detection((images[number]["width"], images[number]["height"]), classes_map=classes)
                for o in objects[number]
            )
        ]
        for number in objects
    }
    print(json.dumps({"truth": truth, "found": samples.labels}))


main(*sys.argv[1:])
