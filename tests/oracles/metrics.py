"""The metrics of dpar/evaluation a second time: one formula or one loop each, in numpy and scipy."""

import numpy as np
from scipy.linalg import sqrtm


def frechet_distance(a, b):
    """|m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^1/2) by scipy's matrix square root."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    ours, theirs = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ours + theirs - 2 * sqrtm(ours @ theirs).real)


def precision_recall(samples, reference, k):
    """Every distance in float64; a ball reaches to the (k+1)-th smallest distance, the point itself included."""
    samples, reference = np.asarray(samples, float), np.asarray(reference, float)

    def distances(points, others):
        return np.array([np.sum((p - others) ** 2, axis=1) for p in points])

    sample_radii, reference_radii = (np.sort(distances(x, x), axis=1)[:, k] for x in (samples, reference))
    between = distances(samples, reference)
    precision = np.mean([any(row <= reference_radii) for row in between])
    recall = np.mean([any(column <= sample_radii) for column in between.T])
    return precision, recall


def kernel_distance(a, b):
    """The unbiased squared MMD under the cubic kernel, pair by pair."""
    a, b = np.asarray(a, float), np.asarray(b, float)

    def kernel(x, y):
        return (np.dot(x, y) / len(x) + 1) ** 3

    def within(points):
        return np.mean([kernel(x, y) for i, x in enumerate(points) for j, y in enumerate(points) if i != j])

    return within(a) + within(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def inception_score(logits, split_size):
    """As ADM's evaluator: consecutive splits, the last perhaps shorter."""
    logits = np.asarray(logits, float)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    scores = []
    for start in range(0, len(p), split_size):
        part = p[start : start + split_size]
        scores.append(np.exp(np.mean(np.sum(part * (np.log(part) - np.log(part.mean(0))), axis=1))))
    return np.mean(scores)


def resize_tf1(image, side):
    """TensorFlow 1's ResizeBilinear of (H, W) pixels, pixel by pixel."""
    height, width = image.shape
    resized = np.empty((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            resized[i, j] = upper + (lower - upper) * (y - top)
    return resized
