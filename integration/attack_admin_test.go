package integration

import (
	"fmt"
	"strings"
)

// adminAttacks ask for what is the admin's.
func adminAttacks() []attack {
	admins := func(row, target, body, why string) attack {
		return attack{row: row, target: target, body: body, says: "admins only", rawFails: why}
	}
	const noSwarm = "the Engine is in no swarm"
	all := []attack{
		{row: "GET /plugins", target: "/plugins", status: 200, worked: tells("atk/plugin")},
		{row: "GET /plugins/{}/json", target: "/plugins/atk/plugin:1/json", status: 404, worked: tells("atk/plugin")},
		{row: "POST /plugins/create", target: "/plugins/create?name=atk/mine:1", send: pluginMade, says: "admins only", worked: func(w *world, _ answer) bool {
			return strings.Contains(w.raw("GET", "/plugins", "").body, "atk/mine:1")
		}},
		{row: "POST /plugins/{}/set", target: "/plugins/atk/plugin:1/set", body: `["A=stolen"]`, says: "admins only", worked: shows("plugin", "A=stolen")},
		{row: "DELETE /plugins/{}", target: "/plugins/atk/plugin:1", says: "admins only", worked: gone("plugin")},
		admins("POST /plugins/{}/enable", "/plugins/atk/none:1/enable?timeout=1", "", "there is no such plugin"),
		admins("POST /plugins/{}/disable", "/plugins/atk/none:1/disable", "", "there is no such plugin"),
		admins("POST /plugins/{}/push", "/plugins/atk/none:1/push", "", "there is no such plugin"),
		admins("POST /plugins/{}/upgrade", "/plugins/atk/none:1/upgrade?remote=localhost:1/x", "[]", "there is no such plugin"),
		{row: "GET /plugins/privileges", target: "/plugins/privileges?remote=localhost:1/x", says: "admins only", worked: answers(200)},
		admins("POST /plugins/pull", "/plugins/pull?remote=localhost:1/UPPER", "[]", "the reference is not one"),

		{row: "GET /swarm", target: "/swarm", status: 503, rawFails: noSwarm},
		admins("POST /swarm/init", "/swarm/init", `{"ListenAddr":"not an address","AdvertiseAddr":"not an address"}`, "the address is not one: a swarm would change the machine's network"),
		admins("POST /swarm/join", "/swarm/join", `{"ListenAddr":"not an address"}`, "the address is not one: a swarm would change the machine's network"),
		admins("POST /swarm/leave", "/swarm/leave?force=1", "", noSwarm),
		admins("POST /swarm/update", "/swarm/update?version=1", `{}`, noSwarm),
		admins("GET /swarm/unlockkey", "/swarm/unlockkey", "", noSwarm),
		admins("POST /swarm/unlock", "/swarm/unlock", `{"UnlockKey":"x"}`, noSwarm),
		admins("GET /services/{}/logs", "/services/x/logs?stdout=1", "", noSwarm),
		admins("GET /tasks", "/tasks", "", noSwarm),
		admins("GET /tasks/{}", "/tasks/x", "", noSwarm),
		admins("GET /tasks/{}/logs", "/tasks/x/logs?stdout=1", "", noSwarm),
		{row: "ANY /debug/{}", method: "GET", target: "/debug/vars", says: "admins only", worked: tells("memstats")},
		{row: "ANY /debug/{}", method: "GET", name: "profiles", target: "/debug/pprof/cmdline", says: "admins only", worked: tells("dockerd")},
		{row: "ANY /debug/{}", method: "GET", name: "with a version", target: "/v1.41/debug/vars", says: "admins only", worked: tells("memstats"), rawFails: "it has no version"},
	}
	for _, kind := range []string{"services", "nodes", "secrets", "configs"} {
		all = append(all,
			admins("GET /"+kind, "/"+kind, "", noSwarm),
			admins("GET /"+kind+"/{}", "/"+kind+"/x", "", noSwarm),
			admins("DELETE /"+kind+"/{}", "/"+kind+"/x", "", noSwarm),
			admins("POST /"+kind+"/{}/update", "/"+kind+"/x/update?version=1", `{}`, noSwarm))
		if kind != "nodes" {
			all = append(all, admins("POST /"+kind+"/create", "/"+kind+"/create", `{"Name":"x"}`, noSwarm))
		}
	}
	return all
}

// pluginTar is a plugin that does nothing, as it is made; no two are the same,
// since the Engine keeps what one was made of for a while.
func pluginTar(w *world) string {
	w.plugins++
	n := fmt.Sprint(w.plugins)
	return tarOf("config.json", `{"description":"`+n+`","documentation":"","entrypoint":["/x"],"interface":{"types":["docker.volumedriver/1.0"],"socket":"x.sock"},"env":[{"name":"A","settable":["value"],"value":""}]}`, "rootfs/x", n)
}

func pluginMade(w *world, socket, target, _ string) answer {
	return ask(w.t, socket, "POST", target, pluginTar(w))
}
