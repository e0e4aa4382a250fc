#include "ask.h"

#include "clock.h"

static void question_send(struct ask *a)
{
    struct hapi_msg_text m = {.id = a->question};
    uint8_t buf[64];
    int n = hapi_msg_text_encode(&m, buf, sizeof buf);

    if (n > 0)
        hapi_control_send(a->control, a->question, buf, (size_t)n);
}

static void on_open(struct hapi_control *c, const struct hapi_hello *peer)
{
    (void)peer;
    question_send(hapi_control_user(c));
}

static void on_message(struct hapi_control *c, enum hapi_message type, const void *body, size_t n)
{
    struct ask *a = hapi_control_user(c);
    struct hapi_msg_error e;
    struct hapi_err err = {0};

    if (type == HAPI_MSG_ERROR && !hapi_msg_error_decode(&e, body, n, &err))
        hapi_err_set(&err, e.code < 0 ? e.code : HAPI_EPROTO, 0, "%.*s", (int)e.text.n, e.text.s);
    else if (type == a->answer && !a->take(a, body, n, &err))
        a->answered = true;
    if (err.code && !a->err.code) {
        a->err = err;
        hapi_control_finish(c);
    }
}

static void on_close(struct hapi_control *c, const struct hapi_err *why)
{
    struct ask *a = hapi_control_user(c);

    if (!a->err.code)
        a->err = *why;
    a->control = NULL;
    a->over = true;
}

int ask_connect(struct ask *a, struct hapi_loop *loop, const struct hapi_keys *keys, struct hapi_err *err)
{
    static const struct hapi_control_handler handler = {
        .on_open = on_open, .on_message = on_message, .on_close = on_close};
    struct hapi_control_options opt = {
        .hello = {.major_min = HAPI_PROTO_MAJOR,
                  .major_max = HAPI_PROTO_MAJOR,
                  .minor = HAPI_PROTO_MINOR,
                  .role = {"client", 6},
                  .version = {HAPI_VERSION, sizeof HAPI_VERSION - 1}},
        .keys = keys,
    };
    char host[HAPI_NAME_MAX + 1];
    uint16_t port;

    a->loop = loop;
    int rc = hapi_address_parse(a->node, host, &port, err);
    if (!rc)
        rc = hapi_control_connect(&a->control, loop, host, port, &opt, &handler, a, err);
    if (rc) {
        a->over = true;
        hapi_err_context(err, "node %s", a->node);
        a->err = *err;
    }
    return rc;
}

void ask_again(struct ask *a)
{
    a->answered = false;
    if (a->control)
        question_send(a);
}

int ask_wait(struct ask *a, int64_t until_ns, struct hapi_err *err)
{
    while (!a->answered && !a->over) {
        int64_t left = until_ns < 0 ? -1 : until_ns - hapi_clock_ns();
        if (until_ns >= 0 && left <= 0)
            return hapi_err_set(err, HAPI_ETIMEDOUT, 0, "node %s: no answer in time", a->node);
        int rc = hapi_loop_run_once(a->loop, left, err);
        if (rc)
            return rc;
    }
    if (a->answered)
        return 0;
    *err = a->err;
    if (!err->code)
        hapi_err_set(err, HAPI_ECLOSED, 0, "no answer");
    return hapi_err_context(err, "node %s", a->node);
}

void ask_close(struct ask *a)
{
    int64_t until = hapi_clock_ns() + HAPI_NS_PER_S;
    struct hapi_err err;

    if (a->control)
        hapi_control_finish(a->control);
    while (!a->over && hapi_clock_ns() < until)
        if (hapi_loop_run_once(a->loop, 50 * HAPI_NS_PER_MS, &err))
            break;
}
