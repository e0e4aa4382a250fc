#include "check.h"
#include "scenario.h"

#define MEMORY "{\"fixed\":0,\"per_image\":0}"

/* Two cuts, 3 and 9; disk 0.01 s an image. */
static const char profile[] =
    "{\"model\":\"net\",\"images\":64,\"train_batch\":16,\"freeze\":9,\"train_s\":0,\"source_bytes\":1000,"
    "\"source_prepare_s\":0,\"read_s\":0.01,\"storage_prepare_s\":0,\"bandwidth_Bps\":1e12,\"epochs\":2,"
    "\"storage_cache\":0,\"compute_cache\":0,\"latency_s\":0,\"nodes\":2,\"storage_memory\":1,\"compute_"
    "memory\":1,"
    "\"client_bandwidth_Bps\":5e11,\"tiers\":{\"storage\":{\"cores\":12}},\"cuts\":["
    "{\"index\":3,\"name\":\"three\",\"wire_bytes\":{\"f32\":100,\"f16\":50},\"storage_s\":0,\"compute_s\":0,"
    "\"storage_memory\":" MEMORY ",\"compute_memory\":" MEMORY "},"
    "{\"index\":9,\"name\":\"nine\",\"wire_bytes\":{\"f32\":10},\"storage_s\":0,\"compute_s\":0,"
    "\"storage_memory\":" MEMORY ",\"compute_memory\":" MEMORY "}]}";

static const char scenario[] =
    "{\"seed\":7,\"switch_Bps\":1e12,\"profiles\":{\"net\":\"net.json\"},"
    "\"nodes\":[{\"count\":3,\"name\":\"store\",\"bandwidth_Bps\":1e9,\"cores\":4,\"devices\":1,"
    "\"contention\":0.5,"
    "\"speed\":2,\"batches\":16},{\"bandwidth_Bps\":1e8}],"
    "\"clients\":[{\"count\":3,\"name\":\"c\",\"profile\":\"net\",\"spread\":2,\"epochs\":1,\"slots\":3,"
    "\"depth\":5,"
    "\"chunk_images\":4,\"request_images\":16,\"bandwidth_Bps\":1e10,\"start_s\":0.5,"
    "\"plan\":[{\"cut\":3,\"wire\":\"f16\",\"micro_batch\":4,\"node\":1,\"share\":0.25},"
    "{\"cut\":-1,\"micro_batch\":8,\"share\":0.75}]},"
    "{\"profile\":\"net\",\"nodes\":[3,1],\"plan\":[{\"cut\":9,\"wire\":\"f32\",\"micro_batch\":2}]}]}";

/* `arg` counts the calls; "net.json" is the profile, others cannot be had. */
static int load(void *arg, const char *name, char **text, size_t *size, struct hapi_err *err)
{
    ++*(int *)arg;
    if (strcmp(name, "net.json"))
        return hapi_err_set(err, HAPI_ESYS, 0, "cannot open %s", name);
    *text = strdup(profile);
    REQUIRE(*text);
    *size = strlen(*text);
    return 0;
}

static struct hapi_scenario *parsed(const char *text)
{
    struct hapi_scenario *s = NULL;
    struct hapi_err err = {0};
    int loads = 0;
    int rc = hapi_scenario_parse(&s, text, strlen(text), load, &loads, &err);

    CHECKF(!rc, "%s", err.text);
    REQUIRE(s);
    return s;
}

static void keys__all_of_them__read(void)
{
    struct hapi_scenario *s = parsed(scenario);
    const struct hapi_sim_node *n = s->sim.nodes;
    const struct hapi_sim_client *c = s->sim.clients;

    CHECK(s->sim.seed == 7 && s->sim.switch_Bps == 1e12 && s->sim.n_nodes == 4 && s->sim.n_clients == 4);
    CHECK(!strcmp(n[0].name, "store.0") && !strcmp(n[2].name, "store.2") && !strcmp(n[3].name, "node.3"));
    CHECK(n[2].bandwidth_Bps == 1e9 && n[2].cores == 4 && n[2].devices == 1 && n[2].contention == 0.5);
    CHECK(n[2].speed == 2 && n[2].batches == 16);
    CHECK(n[3].cores == 1 && n[3].devices == 0 && n[3].speed == 1 && n[3].batches == HAPI_SIM_BATCHES);
    CHECK(!strcmp(c[1].name, "c.1") && !strcmp(c[3].name, "client.3") && c[1].profile == s->profiles[0]);
    CHECK(c[1].epochs == 1 && c[1].slots == 3 && c[1].depth == 5 && c[1].chunk == 4 &&
          c[1].request_images == 16);
    CHECK(c[1].bandwidth_Bps == 1e10 && c[1].start_s == 0.5);
    CHECK(c[1].plan.n_parts == 2 && c[1].plan.parts[0].cut == 3 && c[1].plan.parts[0].wire == HAPI_WIRE_F16);
    CHECK(c[1].plan.parts[0].node == 1 && c[1].plan.parts[0].share == 0.25);
    CHECK(c[1].plan.parts[1].wire == HAPI_WIRE_RAW && c[1].plan.parts[1].node == HAPI_PLAN_ANY_NODE);
    CHECK(c[3].epochs == 2 && c[3].slots == HAPI_SIM_SLOTS && c[3].depth == HAPI_SIM_DEPTH);
    CHECK(c[3].bandwidth_Bps == 5e11 && c[3].request_images == HAPI_SIM_REQUEST_IMAGES && c[3].start_s == 0);
    CHECK(c[3].n_nodes == 2 && c[3].nodes[0] == 3 && c[3].nodes[1] == 1);
    hapi_scenario_free(s);
}

/* 0 1, 2 3, then one further on: 1 2. */
static void spread__of_several_clients__goes_round_the_nodes(void)
{
    struct hapi_scenario *s = parsed(scenario);
    const struct hapi_sim_client *c = s->sim.clients;

    CHECK(c[0].n_nodes == 2 && c[0].nodes[0] == 0 && c[0].nodes[1] == 1);
    CHECK(c[1].nodes[0] == 2 && c[1].nodes[1] == 3 && c[2].nodes[0] == 1 && c[2].nodes[1] == 2);
    hapi_scenario_free(s);
}

static void nodes__not_said__are_the_profiles(void)
{
    char text[2048];
    struct hapi_scenario *s;
    struct hapi_sim_result *r;
    struct hapi_err err = {0};

    snprintf(text, sizeof text,
             "{\"profiles\":{\"net\":%s},\"clients\":[{\"profile\":\"net\","
             "\"plan\":[{\"cut\":9,\"wire\":\"f32\",\"micro_batch\":8}]}]}",
             profile);
    REQUIRE(!hapi_scenario_parse(&s, text, strlen(text), NULL, NULL, &err));
    CHECK(s->sim.n_nodes == 2 && s->sim.nodes[1].cores == 12 && s->sim.nodes[1].batches == 24);
    CHECK(!strcmp(s->sim.nodes[1].name, "node.1") && s->sim.seed == 1 && s->sim.switch_Bps == 0);
    REQUIRE(!hapi_sim_run(&r, &s->sim, &err));
    CHECK(r->clients[0].n_epochs == 2 && r->clients[0].epochs[1].seconds > 0.3199 &&
          r->clients[0].epochs[1].seconds < 0.3201);
    hapi_sim_result_free(r);
    hapi_scenario_free(s);
}

/* ------------------------------------------------------------------ what is refused */

static void refused_text(const char *text, const char *what, const char *says)
{
    struct hapi_scenario *s = (struct hapi_scenario *)1;
    struct hapi_err err = {0};
    int loads = 0, rc = hapi_scenario_parse(&s, text, strlen(text), load, &loads, &err);

    CHECKF(rc < 0 && rc == err.code && s == (struct hapi_scenario *)1, "%s gives %d", what, rc);
    CHECKF(strstr(err.text, says), "%s says: %s", what, err.text);
}

static void refused(const char *from, const char *to, const char *says)
{
    const char *at = strstr(scenario, from);
    char text[4096];

    REQUIRE(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - scenario), scenario, to, at + strlen(from));
    refused_text(text, to, says);
}

static void keys__wrong__named(void)
{
    refused("\"seed\":7", "\"seed\":-7", "seed must be");
    refused("\"seed\":7", "\"speed\":7", "speed is not known");
    refused("\"switch_Bps\":1e12", "\"switch_Bps\":0", "switch_Bps must be");
    refused("\"profiles\":{\"net\":\"net.json\"}", "\"profiles\":{}", "profiles must have 1 to");
    refused("\"profiles\":{\"net\":\"net.json\"}", "\"profiles\":[]", "profiles must be an object");
    refused("\"net\":\"net.json\"", "\"net\":7", "profiles.net must be a profile");
    refused("\"net\":\"net.json\"", "\"net\":\"other.json\"", "profiles.net: cannot open other.json");
    refused("\"net\":\"net.json\"", "\"net\":{\"cuts\":[{}]}", "profiles.net: model is missing");
    refused("\"bandwidth_Bps\":1e9", "\"bandwidth_Bps\":0", "nodes[0].bandwidth_Bps must be");
    refused("\"bandwidth_Bps\":1e8", "\"cores\":1", "nodes[1].bandwidth_Bps is missing");
    refused("\"cores\":4", "\"cores\":0", "nodes[0].cores must be");
    refused("\"cores\":4", "\"core\":4", "nodes[0].core is not known");
    refused("\"contention\":0.5", "\"contention\":1.5", "nodes[0].contention must be");
    refused("\"speed\":2", "\"speed\":0", "nodes[0].speed must be");
    refused("\"batches\":16", "\"batches\":1", "nodes[0].batches must be");
    refused("\"count\":3,\"name\":\"store\"", "\"count\":0", "nodes[0].count must be");
    refused("\"count\":3,\"name\":\"store\"", "\"count\":65536", "nodes are more than");
    refused("{\"bandwidth_Bps\":1e8}", "7", "nodes[1] must be an object");
    refused("\"name\":\"c\"", "\"name\":1", "clients[0].name must be a string");
    refused("\"profile\":\"net\",\"spread\"", "\"profile\":\"nut\",\"spread\"",
            "clients[0].profile is no name");
    refused("\"profile\":\"net\",\"nodes\"", "\"nodes\"", "clients[1].profile is missing");
    refused("\"spread\":2", "\"spread\":5", "clients[0].spread must be");
    refused("\"spread\":2", "\"spread\":2,\"nodes\":[0]", "clients[0].spread cannot be said with");
    refused("\"nodes\":[3,1]", "\"nodes\":[3,4]", "clients[1].nodes[1] must be");
    refused("\"nodes\":[3,1]", "\"nodes\":[]", "clients[1].nodes is empty");
    refused("\"slots\":3", "\"slots\":0", "clients[0].slots must be");
    refused("\"depth\":5", "\"depth\":1", "clients[0].depth must be");
    refused("\"chunk_images\":4", "\"chunk_images\":0", "clients[0].chunk_images must be");
    refused("\"request_images\":16", "\"request_images\":1.5", "clients[0].request_images must be");
    refused("\"epochs\":1", "\"epochs\":\"1\"", "clients[0].epochs must be");
    refused("\"start_s\":0.5", "\"start_s\":NaN", "clients[0].start_s: byte");
    refused("\"profiles\"", "\"profils\"", "profils is not known");
}

static void plans__wrong__named(void)
{
    refused("\"cut\":3", "\"cut\":4", "clients[0].plan[0].cut");
    refused("\"cut\":3", "\"cut\":3.5", "clients[0].plan[0].cut must be");
    refused("\"cut\":3,", "", "clients[0].plan[0].cut is missing");
    refused("\"wire\":\"f16\",", "", "clients[0].plan[0].wire is missing");
    refused("\"wire\":\"f16\"", "\"wire\":\"f8\"", "clients[0].plan[0].wire is no wire dtype");
    refused("\"wire\":\"f16\"", "\"wire\":\"int8\"", "clients[0].plan[0].wire is a dtype in which");
    refused("\"cut\":-1", "\"cut\":-1,\"wire\":\"f32\"", "clients[0].plan[1].wire is of a cut");
    refused("\"micro_batch\":4", "\"micro_batch\":0", "clients[0].plan[0].micro_batch must be");
    refused("\"micro_batch\":4,", "", "clients[0].plan[0].micro_batch is missing");
    refused("\"node\":1", "\"node\":2", "clients[0].plan[0].node is none of the job's");
    refused("\"share\":0.25", "\"share\":0.5", "clients[0].plan: the shares");
    refused("\"share\":0.25", "\"share\":0", "clients[0].plan[0].share");
    refused("\"share\":0.25", "\"part\":0.25", "clients[0].plan[0].part is not known");
    refused("[{\"cut\":9,\"wire\":\"f32\",\"micro_batch\":2}]", "[]", "clients[1].plan: a plan has");
    refused("[{\"cut\":9,\"wire\":\"f32\",\"micro_batch\":2}]", "{}", "clients[1].plan must be an array");
}

static void documents__that_are_none__said(void)
{
    refused_text("", "nothing", "byte 0 is no JSON");
    refused_text("[]", "an array", "the document must be an object");
    refused_text("{\"profiles\":{\"net\":\"net.json\"}}", "no clients", "clients is missing");
    refused_text("{\"profiles\":{\"net\":\"net.json\"},\"clients\":[]}", "empty clients", "clients is empty");
    refused_text("{\"profiles\":{\"a\":\"net.json\",\"b\":\"net.json\"},\"clients\":[]}", "two profiles",
                 "nodes is missing: of several");
}

int main(void)
{
    CASE(keys__all_of_them__read);
    CASE(spread__of_several_clients__goes_round_the_nodes);
    CASE(nodes__not_said__are_the_profiles);
    CASE(keys__wrong__named);
    CASE(plans__wrong__named);
    CASE(documents__that_are_none__said);
    return check_done();
}
