/*
 * A dataset as the nodes describe it: objects by name, samples in canonical order, classes, and who has what.
 *
 * Canonical order does not depend on which nodes hold an object: objects by name (bytewise), samples of an
 * object in its own order. Classes are the union of names over all nodes, sorted (as numbers when all are
 * integers). The same object on two nodes must have the same digest; requests demand it, so that a node never
 * serves another content under the same name.
 * Threads: built by one thread; read-only, from any, after hapi_catalog_seal().
 */
#ifndef HAPI_CLIENT_CATALOG_H
#define HAPI_CLIENT_CATALOG_H

#include "err.h"
#include "wire.h"

enum { HAPI_NODES_MAX = 64 };

struct hapi_catalog_object {
    char *name;
    uint8_t digest[HAPI_HASH_SIZE];
    uint64_t nodes; /* bit i: node i has it */
    uint32_t n_samples, first_sample;
    uint32_t *sample_bytes;
};

struct hapi_catalog {
    struct hapi_catalog_object *objects;
    uint32_t n_objects, capacity;
    uint32_t n_samples, max_sample_bytes;
    uint32_t *sample_object; /* object of each sample; set by seal */
    char **classes;
    uint32_t n_classes;
    uint32_t n_nodes;
    char **node_classes[HAPI_NODES_MAX]; /* in the node's order; node_class_map[node][its index] is ours */
    uint32_t n_node_classes[HAPI_NODES_MAX];
    uint32_t *node_class_map[HAPI_NODES_MAX];
};

/* Each may be called again for a node that reconnects: HAPI_ESTALE when its data is no longer the same. */
int hapi_catalog_classes(struct hapi_catalog *c, uint32_t node, const struct hapi_msg_dataset *d,
                         struct hapi_err *err);
int hapi_catalog_add(struct hapi_catalog *c, uint32_t node, const struct hapi_msg_object *o,
                     struct hapi_err *err);
/* Sorts, numbers, unites. HAPI_ENOENT when there is no sample, HAPI_ENOMEM. */
int hapi_catalog_seal(struct hapi_catalog *c, struct hapi_err *err);
void hapi_catalog_fini(struct hapi_catalog *c);

#endif
