#include "onnx.h"

/* Whether every node comes after those that make its inputs. */
static bool sorted(const struct hapi_onnx *o)
{
    for (size_t i = 0; i < o->n_nodes; i++)
        for (int k = 0; k < o->nodes[i].n_in; k++)
            if (o->nodes[i].in[k] >= 0 && o->values[o->nodes[i].in[k]].producer >= (int)i)
                return false;
    return true;
}

/* users[first[p] .. first[p+1]): the nodes that read an output of node p, once per edge. */
static void link_users(const struct hapi_onnx *o, size_t *first, int *users, int *missing)
{
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < o->n_nodes; i++)
            for (int k = 0; k < o->nodes[i].n_in; k++) {
                int v = o->nodes[i].in[k];
                int p = v >= 0 ? o->values[v].producer : -1;
                if (p < 0)
                    continue;
                if (!pass) {
                    first[p + 1]++;
                    missing[i]++;
                } else {
                    users[first[p]++] = (int)i;
                }
            }
        /* After counting, the starts; after filling, first[p] is the end of p: shift back. */
        if (!pass) {
            for (size_t p = 0; p < o->n_nodes; p++)
                first[p + 1] += first[p];
        } else {
            for (size_t p = o->n_nodes; p > 0; p--)
                first[p] = first[p - 1];
            first[0] = 0;
        }
    }
}

int hapi_onnx_sort(struct hapi_onnx *o, struct hapi_err *err)
{
    size_t edges = 0, done = 0, ready = 0;

    if (sorted(o))
        return 0;
    for (size_t i = 0; i < o->n_nodes; i++)
        edges += (size_t)o->nodes[i].n_in;
    size_t *first = hapi_arena_array(o->arena, o->n_nodes + 1, sizeof *first);
    int *users = hapi_arena_array(o->arena, edges, sizeof *users);
    int *missing = hapi_arena_array(o->arena, o->n_nodes, sizeof *missing);
    int *order = hapi_arena_array(o->arena, o->n_nodes, sizeof *order);
    struct hapi_onnx_node *nodes = hapi_arena_array(o->arena, o->n_nodes, sizeof *nodes);
    if (!first || !users || !missing || !order || !nodes)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "over the limit of the parser's memory");
    link_users(o, first, users, missing);
    for (size_t i = 0; i < o->n_nodes; i++)
        if (!missing[i])
            order[ready++] = (int)i;
    for (; done < ready; done++)
        for (size_t u = first[order[done]]; u < first[order[done] + 1]; u++)
            if (!--missing[users[u]])
                order[ready++] = users[u];
    if (done < o->n_nodes) {
        size_t i = 0;
        while (!missing[i])
            i++;
        return hapi_err_set(err, HAPI_EFORMAT, 0,
                            "the graph has a cycle through or before node %zu \"%.150s\" (%s)", i,
                            o->nodes[i].name, hapi_op_name(o->nodes[i].op));
    }
    for (size_t i = 0; i < o->n_nodes; i++) {
        nodes[i] = o->nodes[order[i]];
        for (int k = 0; k < nodes[i].n_out; k++)
            if (nodes[i].out[k] >= 0)
                o->values[nodes[i].out[k]].producer = (int)i;
    }
    o->nodes = nodes;
    return 0;
}
