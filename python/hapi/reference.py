"""What others reach on the same data: scikit-learn's logistic regression on raw pixels and on features.

    python -m hapi.reference [--torch]
"""

import argparse
import io
import warnings

import numpy as np

from . import data

# Strength of regularisation, chosen by 5-fold cross-validation on the 2,000 training images alone.
C_PIXELS = 0.01
C_FEATURES = 0.01


def probe(train_x, train_y, test_x, test_y, c):
    """Test accuracy of logistic regression on standardised columns."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged to 1e-4 is good enough here
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300)).fit(train_x, train_y)
    return float(model.score(test_x, test_y))


def raw_pixels():
    """Test accuracy on the 28x28 pixels of the images that fashion-train and fashion-test are made from."""
    sets = [data.fashion_raw(p["part"], p["n"]) for p in (data.DATASETS["fashion-train"], data.DATASETS["fashion-test"])]
    (train_x, train_y), (test_x, test_y) = [(x.reshape(len(x), -1).astype(np.float64), y) for x, y in sets]
    return probe(train_x, train_y, test_x, test_y, C_PIXELS)


def torch_features(weights, name, limit=None):
    """(features (n,1280), labels) of the first `limit` images of dataset fashion-train or fashion-test by torch, with
    Lite0's own transform."""
    import torch
    from PIL import Image

    from . import models, transform

    net, t = models.build("lite0", weights)
    p = data.DATASETS[name]
    images, labels = data.fashion_raw(p["part"], limit or p["n"])
    jpegs = [data.fashion_jpeg(x, p["size"], p["quality"]) for x in images]
    out = []
    with torch.no_grad():
        for i in range(0, len(jpegs), 16):
            x = np.stack([transform.apply(t, Image.open(io.BytesIO(j))) for j in jpegs[i : i + 16]])
            out.append(torch.flatten(net._avg_pooling(net.extract_features(torch.from_numpy(x))), 1).numpy())
    return np.concatenate(out), labels


def main():
    p = argparse.ArgumentParser(prog="hapi.reference", description=__doc__.splitlines()[0])
    p.add_argument("--torch", action="store_true", help="also Lite0's features, pretrained and random, by torch (5 min)")
    a = p.parse_args()
    print(f"logistic regression on raw pixels: {raw_pixels():.3f}")
    for weights in ("pretrained", "random") if a.torch else ():
        train, test = (torch_features(weights, n) for n in ("fashion-train", "fashion-test"))
        print(f"logistic regression on features of Lite0, {weights} weights: {probe(*train, *test, C_FEATURES):.3f}")


if __name__ == "__main__":
    main()
