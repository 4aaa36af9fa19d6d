package integration

import "encoding/json"

// networkAttacks go at bob's networks, and at what is in others.
func networkAttacks() []attack {
	const text = "this network belongs to bob"
	return []attack{
		{row: "GET /networks", target: "/networks", status: 200, worked: tells("atk-net-idle")},
		{row: "GET /networks", name: "as before API 1.28", target: "/v1.24/networks", status: 200, worked: tells("atk-run")},
		{row: "GET /networks", name: "by name", target: query("/networks", "filters", `{"name":["atk-net"]}`), status: 200, worked: tells("atk-net-idle")},
		{row: "GET /networks", name: "by bob's label", target: query("/networks", "filters", `{"label":["ds01.user=bob"]}`), status: 200, worked: tells("atk-net-idle")},
		{row: "GET /networks", name: "idle ones", target: query("/networks", "filters", `{"dangling":["true"]}`), status: 200, worked: tells("atk-net-idle")},
		{row: "GET /networks/", target: "/networks/", status: 200, worked: tells("atk-net-idle")},
		{row: "GET /networks/{}", ref: "net", free: true, target: "/networks/_REF_", says: text, worked: tells("atk-run")},
		{row: "GET /networks/{}", ref: "net", free: true, name: "verbose", target: "/networks/_REF_?verbose=1&scope=local", says: text, worked: tells("atk-run")},
		{row: "GET /networks/{}", name: "who is in the bridge", target: "/networks/bridge", status: 200, worked: tells("atk-held")},
		{row: "DELETE /networks/{}", ref: "idle net", target: "/networks/_REF_", says: text, worked: gone("idle net")},

		{row: "POST /networks/{}/connect", ref: "net", name: "one's own container to bob's network", target: "/networks/_REF_/connect", body: `{"Container":"_OWN_"}`, says: text, worked: shows("net", "atk-own")},
		{row: "POST /networks/{}/connect", ref: "held", name: "bob's container to one's own network", target: "/networks/atk-net-own/connect", body: `{"Container":"_REF_"}`, worked: shows("own net", "atk-held")},
		{row: "POST /networks/{}/connect", ref: "held", name: "bob's container in two cases", target: "/networks/atk-net-own/connect", body: `{"Container":"_OWN_","CONTAINER":"_REF_"}`, worked: shows("own net", "atk-held")},
		{row: "POST /networks/{}/connect", name: "with bob's network's ID in the settings", target: "/networks/atk-net-own/connect", body: `{"Container":"_OWN_","EndpointConfig":{"NetworkID":"_NET_"}}`, status: 200,
			send: connectedAndDisconnected, worked: shows("net", "atk-own")},
		{row: "POST /networks/{}/disconnect", ref: "held", target: "/networks/bridge/disconnect", body: `{"Container":"_REF_"}`, worked: differs("held")},
		{row: "POST /networks/{}/disconnect", ref: "run", name: "by force", target: "/networks/atk-net/disconnect", body: `{"Container":"_REF_","Force":true}`, worked: differs("run")},
		{row: "POST /networks/{}/disconnect", ref: "run", name: "in other cases", target: "/networks/atk-net/disconnect", body: `{"container":"_REF_","force":true}`, worked: differs("run")},
		{row: "POST /networks/{}/disconnect", ref: "net", name: "one's own container, after all", target: "/networks/_REF_/disconnect", body: `{"Container":"_OWN_"}`, says: text, rawFails: "it is not in there"},

		{row: "POST /networks/create", name: "a second of bob's name", target: "/networks/create", body: `{"Name":"atk-net"}`, status: 201, alters: true, worked: func(w *world, _ answer) bool {
			var named []struct{ Name string }
			if err := json.Unmarshal([]byte(w.raw("GET", query("/networks", "filters", `{"name":["^atk-net$"]}`), "").body), &named); err != nil {
				w.t.Fatal(err)
			}
			return len(named) > 1
		}},
		{row: "POST /networks/create", name: "in bob's name", target: "/networks/create", body: `{"Name":"atk-net-forged","Labels":{"ds01.user":"bob"}}`, status: 201, alters: true, worked: labelledBobs("/networks/atk-net-forged")},
		{row: "POST /networks/create", name: "in bob's name, in another case", target: "/networks/create", body: `{"Name":"atk-net-forged","labels":{"ds01.user":"bob"}}`, status: 201, alters: true, worked: labelledBobs("/networks/atk-net-forged")},
		{row: "POST /networks/create", name: "called like the start of bob's ID", target: "/networks/create", body: `{"Name":"_NET12_"}`, says: "looks like a container ID", worked: func(w *world, a answer) bool {
			var n struct {
				ID string `json:"Id"`
			}
			return json.Unmarshal([]byte(w.raw("GET", "/networks/"+w.id["net"][:12], "").body), &n) == nil && n.ID == idIn(a)
		}},
	}
}

// connectedAndDisconnected connects alice's container to a network of her own, and
// takes it out again.
func connectedAndDisconnected(w *world, socket, target, body string) answer {
	got := ask(w.t, socket, "POST", target, body)
	if got.status == 200 {
		w.raw("POST", "/networks/atk-net-own/disconnect", `{"Container":"atk-own"}`)
	}
	return got
}

// volumeAttacks go at bob's volumes.
func volumeAttacks() []attack {
	const text = "this volume belongs to bob"
	return []attack{
		{row: "GET /volumes", target: "/volumes", status: 200, worked: tells("atk-vol")},
		{row: "GET /volumes", name: "bob's label", target: query("/volumes", "filters", `{"label":["ds01.user=bob"]}`), status: 200, worked: tells("atk-vol")},
		{row: "GET /volumes", name: "idle ones", target: query("/volumes", "filters", `{"dangling":["true"]}`), status: 200, worked: tells("atk-vol-idle")},
		{row: "GET /volumes", name: "by name", target: query("/volumes", "filters", `{"name":{"atk-vol":true}}`), status: 200, worked: tells("atk-vol")},
		{row: "GET /volumes/{}", ref: "vol", target: "/volumes/_REF_", says: text, worked: tells("Mountpoint")},
		{row: "DELETE /volumes/{}", ref: "idle vol", target: "/volumes/_REF_", says: text, worked: gone("idle vol")},
		{row: "DELETE /volumes/{}", ref: "idle vol", name: "by force", target: "/volumes/_REF_?force=1", says: text, worked: gone("idle vol")},
		{row: "DELETE /volumes/{}", ref: "vol", name: "one that is in use", target: "/volumes/_REF_?force=1", says: text, rawFails: "it is in use", worked: gone("vol")},
		{row: "PUT /volumes/{}", ref: "vol", target: "/volumes/_REF_?version=1", body: `{"Spec":{}}`, says: "admins only", rawFails: "there are no cluster volumes"},
		{row: "POST /volumes/create", name: "a name that is taken", target: "/volumes/create", body: `{"Name":"atk-vol"}`, says: text, worked: tells(`"ds01.user":"bob"`)},
		{row: "POST /volumes/create", name: "a name that is taken, in two cases", target: "/volumes/create", body: `{"Name":"x","name":"atk-vol"}`, says: text, worked: tells(`"ds01.user":"bob"`)},
		{row: "POST /volumes/create", name: "in bob's name", target: "/volumes/create", body: `{"Name":"atk-vol-forged","labels":{"ds01.user":"bob"}}`, status: 201, alters: true, worked: labelledBobs("/volumes/atk-vol-forged")},
		{row: "POST /volumes/create", name: "of bob's volume's files", target: "/volumes/create", body: `{"Name":"atk-vol-forged","DriverOpts":{"type":"none","o":"bind","device":"_VOLUME_"}}`, says: "options of the volume driver",
			worked: func(w *world, a answer) bool {
				return a.status == 201 && reads("/d/f", "atk-secret-volume")(w, w.raw("POST", "/containers/create", hosted(`"Binds":["atk-vol-forged:/d"]`)))
			}},
		{row: "POST /volumes/create", name: "of bob's volume's files, in other cases", target: "/volumes/create", body: `{"name":"atk-vol-forged","driveropts":{"type":"none","o":"bind","device":"_VOLUME_"}}`, says: "options of the volume driver",
			worked: onItsFiles},
	}
}
