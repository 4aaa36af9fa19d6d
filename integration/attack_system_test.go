package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// systemAttacks ask for what the Engine says of everybody, and with words that
// are no part of its API.
func systemAttacks() []attack {
	all := []attack{
		{row: "GET /info", target: "/info", status: 200, worked: countsBobs},
		{row: "GET /info", name: "by an old version", target: "/v1.24/info", status: 200, worked: countsBobs},
		{row: "GET /_ds01/limits", name: "of bob", target: "/_ds01/limits?user=bob", status: 403, says: "the limits of others", rawFails: "there is no such route", worked: tells(`"user": "bob"`)},
		{row: "GET /system/df", target: "/system/df", status: 200, worked: tells("atk-run")},
		{row: "GET /system/df", name: "volumes", target: "/system/df?type=volume", status: 200, worked: tells("atk-vol")},
		{row: "GET /system/df", name: "by an old version", target: "/v1.25/system/df", status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "by an absolute target", target: "http://docker/containers/json?all=1", send: spoken("GET"), status: 200, worked: tells("atk-run")},
		{row: "OPTIONS *", target: "/containers/json?all=1", send: spoken("OPTIONS"), status: 405, rawFails: "it says nothing", worked: tells("atk-run")},
		{row: "CONNECT *", target: "/containers/json?all=1", send: spoken("CONNECT"), status: 405, rawFails: "there is no such route", worked: tells("atk-run")},
		{row: "PRI *", name: "as HTTP/2 begins", target: "*", send: spoken("PRI"), status: 405, rawFails: "there is no such route", worked: tells("atk-run")},
	}
	for name, filters := range map[string]string{
		"all":                 `{}`,
		"bob's label":         `{"label":["ds01.user=bob"]}`,
		"of containers":       `{"type":["container"]}`,
		"of bob's container":  `{"container":["atk-gone"]}`,
		"of networks":         `{"type":["network"]}`,
		"of bob's network":    `{"network":["atk-gone-net"]}`,
		"of volumes":          `{"type":{"volume":true}}`,
		"of bob's volume":     `{"volume":["atk-gone-vol"]}`,
		"of what was removed": `{"event":["destroy"]}`,
	} {
		all = append(all, attack{row: "GET /events", name: name, target: query("/events?since=_SINCE_&until=_NOW_", "filters", filters), prepare: bobsLife, status: 200, worked: tells("atk-gone")})
	}
	return append(all, attack{row: "GET /events", name: "without filters, by an old version", target: "/v1.24/events?since=_SINCE_&until=_NOW_", prepare: bobsLife, status: 200, worked: tells("atk-gone")})
}

// countsBobs wants more containers to be counted than alice has.
func countsBobs(_ *world, a answer) bool {
	var info struct{ Containers int }
	return json.Unmarshal([]byte(a.body), &info) == nil && info.Containers != 1
}

// bobsLife makes something happen to things of bob's.
func bobsLife(w *world) {
	w.since = time.Now()
	w.must(lab.Bob, "POST", "/volumes/create", `{"Name":"atk-gone-vol"}`)
	network := w.must(lab.Bob, "POST", "/networks/create", `{"Name":"atk-gone-net"}`)
	id := w.create(lab.Bob, "atk-gone", `{"Image":"busybox:local"}`)
	w.must(lab.Bob, "DELETE", "/containers/"+id, "")
	w.must(lab.Bob, "DELETE", "/networks/"+network, "")
	w.must(lab.Bob, "DELETE", "/volumes/atk-gone-vol", "")
}

// stamp is a time as parameters have it.
func stamp(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

// spoken writes a request by hand, as clients would not send it.
func spoken(method string) func(w *world, socket, target, body string) answer {
	return func(w *world, socket, target, _ string) answer {
		_, br := open(w.t, socket, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", method, target))
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			w.t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header, string(text)}
	}
}
