package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/audit"
	"github.com/ds01/ds01-proxy/proxy/engine"
	"github.com/ds01/ds01-proxy/proxy/peercred"
)

// containerVerbs are all requests that name a container in their path.
func containerVerbs() []operation {
	var ops []operation
	for _, row := range table() {
		if strings.HasPrefix(row.path, "/containers/{ref") && row.method != anyMethod {
			ops = append(ops, operation{row.method, strings.NewReplacer("{ref:.*}", "REF", "{ref}", "REF", "{checkpoint}", "c").Replace(row.path)})
		}
	}
	// DELETE takes everything after /containers/ for the name.
	for _, method := range []string{get, head, post, put} {
		ops = append(ops, operation{method, "/containers/REF/anything"}, operation{method, "/containers/REF/any/thing"})
	}
	return append(ops, operation{get, "/containers/REF"}, operation{post, "/containers/REF"}, operation{head, "/containers/REF/json"})
}

// bodyFor is a body that the verb accepts.
func bodyFor(path string) string {
	switch path[strings.LastIndexByte(path, '/')+1:] {
	case "exec", "update":
		return "{}"
	}
	return ""
}

// encoded writes every byte of s as %XX.
func encoded(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

// TestNoVerbReachesAnothersContainer sends every verb with every way to say bob's
// container, and wants a 403 that names bob and nothing forwarded.
func TestNoVerbReachesAnothersContainer(t *testing.T) {
	b := newBed(t, withSwitches(openSwitches))
	for _, op := range containerVerbs() {
		for _, ref := range []string{bobID, bobID[:12], bobID[:2], "bobs", "/bobs"[1:], encoded("bobs"), encoded(bobID)} {
			for _, prefix := range []string{"", "/v1.24", "/v1.41", "/v1.41.0"} {
				got := b.do(t, op.method, prefix+strings.Replace(op.path, "REF", ref, 1), bodyFor(op.path))
				if got.status != http.StatusForbidden {
					t.Errorf("%s %s as %s: status %d, want 403", op.method, prefix+op.path, ref, got.status)
				}
				if op.method != head && !strings.Contains(got.message(), "belongs to bob") && !strings.Contains(got.message(), "admins only") {
					t.Errorf("%s %s as %s: %s", op.method, prefix+op.path, ref, got.message())
				}
			}
		}
	}
	for _, c := range []struct{ method, target, body string }{
		{get, "/exec/" + bobExec + "/json", ""},
		{post, "/exec/" + bobExec + "/start", "{}"},
		{post, "/exec/" + bobExec + "/resize?h=1&w=1", ""},
		{post, "/exec/" + bobExec + "/anything", ""},
		{post, "/exec/" + encoded(bobExec) + "/start", "{}"},
		{post, "/commit?container=bobs&repo=x", ""},
		{post, "/commit?container=alices&container=bobs", "null"},
		{post, "/build?networkmode=container:bobs", ""},
		{post, "/networks/n/connect", `{"Container":"bobs"}`},
		{post, "/networks/n/connect", `{"Container":"alices","container":"bobs"}`},
		{post, "/networks/n/disconnect", `{"Container":"bobs","Force":true}`},
		{get, "/containers/json?filters=" + url.QueryEscape(`{"before":["bobs"]}`), ""},
		{get, "/containers/json?filters=" + url.QueryEscape(`{"since":{"bobs":true}}`), ""},
		{post, "/containers/create", `{"Image":"i","HostConfig":{"VolumesFrom":["bobs:ro"]}}`},
		{post, "/containers/create", `{"Image":"i","HostConfig":{"Links":["bobs:x"]}}`},
		{post, "/containers/create", `{"Image":"i","HostConfig":{"Links":["/bobs:/alices/x"]}}`},
		{post, "/containers/create", `{"Image":"i","HostConfig":{"NetworkMode":"container:bobs"}}`},
		{post, "/containers/create", `{"Image":"i","HostConfig":{"networkmode":"container:` + bobID + `"}}`},
		{post, "/containers/create", `{"Image":"i","hoſtconfig":{"PidMode":"container:bobs"}}`},
		{post, "/containers/create", `{"Image":"i","HostConfig":{"PidMode":"container:alices","pidmode":"container:bobs"}}`},
		{post, "/containers/create", `{"Image":"i","HostConfig":{"IpcMode":"container:bobs"}}`},
		{post, "/containers/create", `{"Image":"i","HostConfig":{"Cgroup":"container:bobs"}}`},
	} {
		got := b.do(t, c.method, c.target, c.body)
		if c.target == "/commit?container=alices&container=bobs" {
			// The Engine reads the first.
			if got.status != 200 {
				t.Errorf("commit of alices: %d %s", got.status, got.message())
			}
			if a := b.engine.take(); len(a) != 1 || strings.Contains(a[0].Target, "bobs") || !strings.Contains(a[0].Target, aliceID) {
				t.Errorf("commit arrived as %v", a)
			}
			continue
		}
		if strings.Contains(c.body, `"alices","container":"bobs"`) || strings.Contains(c.body, `"container:alices","pidmode"`) {
			// Both readers take the last of them.
			if got.status != http.StatusForbidden {
				t.Errorf("%s: status %d", c.body, got.status)
			}
		}
		if got.status != http.StatusForbidden || !strings.Contains(got.message(), "belongs to bob") {
			t.Errorf("%s %s %s: %d %s", c.method, c.target, c.body, got.status, got.message())
		}
	}
	if arrived := b.engine.take(); len(arrived) > 0 {
		t.Errorf("%d requests arrived, the first: %v", len(arrived), arrived[0])
	}
}

// TestI1ForwardsTheIDThatWasAuthorised wants every way to say alice's container
// to arrive as its full ID.
func TestI1ForwardsTheIDThatWasAuthorised(t *testing.T) {
	b := newBed(t)
	for _, op := range containerVerbs() {
		if strings.Contains(op.path, "checkpoints") || strings.HasSuffix(op.path, "/copy") {
			continue
		}
		for _, ref := range []string{aliceID, aliceID[:12], aliceID[:2], "alices", encoded("alices")} {
			target := strings.Replace(op.path, "REF", ref, 1)
			if strings.HasSuffix(target, "/rename") {
				target += "?name=new"
			}
			b.do(t, op.method, target, bodyFor(op.path))
			arrived := b.engine.take()
			want := "/v1.41" + strings.Replace(op.path, "REF", aliceID, 1)
			if len(arrived) != 1 || arrived[0].Method != op.method || strings.SplitN(arrived[0].Target, "?", 2)[0] != want {
				t.Errorf("%s %s arrived as %v, want %s", op.method, target, arrived, want)
			}
		}
	}
}

func TestCreateReferencesBecomeIDs(t *testing.T) {
	b := newBed(t)
	b.do(t, post, "/containers/create", `{"Image":"i","HostConfig":{"VolumesFrom":["alices:ro","`+aliceID[:7]+`"],"Links":["alices","alices:al","/alices:/other/al"],
		"NetworkMode":"container:alices","PidMode":"container:a11","IpcMode":"container:alices"}}`)
	hc := created(t, b).HostConfig
	for _, c := range []struct{ what, got, want string }{
		{"volumes from", strings.Join(hc.VolumesFrom, " "), aliceID + ":ro " + aliceID},
		{"links", strings.Join(hc.Links, " "), aliceID + ":alices " + aliceID + ":al " + aliceID + ":al"},
		{"network", string(hc.NetworkMode), "container:" + aliceID},
		{"pid", string(hc.PidMode), "container:" + aliceID},
		{"ipc", string(hc.IpcMode), "container:" + aliceID},
	} {
		if c.got != c.want {
			t.Errorf("%s arrived as %q, want %q", c.what, c.got, c.want)
		}
	}
}

// created decodes, with the Engine's own types, the create request that arrived.
func created(t *testing.T, b *bed) container.CreateRequest {
	t.Helper()
	arrived := b.engine.take()
	if len(arrived) != 1 {
		t.Fatalf("%d requests arrived, want one create", len(arrived))
	}
	var req container.CreateRequest
	if err := json.Unmarshal([]byte(arrived[0].Body), &req); err != nil {
		t.Fatalf("what arrived: %v: %s", err, arrived[0].Body)
	}
	if req.Config == nil || req.HostConfig == nil {
		t.Fatalf("incomplete: %s", arrived[0].Body)
	}
	return req
}

// TestI2WhatWasInspectedIsRebuilt sends what two readers could read differently.
func TestI2WhatWasInspectedIsRebuilt(t *testing.T) {
	b := newBed(t)
	for _, c := range []struct{ name, body, gone string }{
		{"top-level host settings", `{"Image":"i","Privileged":true}`, "rivileged\":true"},
		{"unknown keys", `{"Image":"i","Evil":1,"HostConfig":{"Evil":2}}`, "Evil"},
		{"owner label twice", `{"Image":"i","Labels":{"ds01.user":"bob"},"labels":{"ds01.user":"bob","ds01.user":"bob"}}`, `"bob"`},
		{"cgroup parent in other letters", `{"Image":"i","HostConfig":{"cgroupparent":"/evil","CgroupParent":"/evil","cgroupParent":"/evil"}}`, "/evil"},
		{"folded long s", `{"Image":"i","HoſtConfig":{"CgroupParent":"/evil"}}`, "/evil"},
	} {
		if got := b.do(t, post, "/containers/create", c.body); got.status != 200 {
			t.Errorf("%s: %d %s", c.name, got.status, got.message())
		}
		arrived := b.engine.take()
		if len(arrived) != 1 || strings.Contains(arrived[0].Body, c.gone) {
			t.Errorf("%s arrived as %v", c.name, arrived)
		}
	}
	// Parameters that were decided on arrive once.
	b.do(t, post, "/containers/alices/rename?name=one&name="+bobID, "")
	if a := b.engine.take(); len(a) != 1 || a[0].Target != "/v1.41/containers/"+aliceID+"/rename?name=one" {
		t.Errorf("rename arrived as %v", a)
	}
	b.do(t, post, "/containers/create?name=one&name="+bobID, `{"Image":"i"}`)
	if a := b.engine.take(); len(a) != 1 || a[0].Target != "/v1.41/containers/create?name=one" {
		t.Errorf("create arrived as %v", a)
	}
	b.do(t, get, "/containers/json?filters=%7B%7D&filters="+url.QueryEscape(`{"label":["x"]}`), "")
	if a := b.engine.take(); len(a) != 1 || strings.Count(a[0].Target, "filters=") != 1 || strings.Contains(a[0].Target, "%22x%22") {
		t.Errorf("list arrived as %v", a)
	}
}

func TestI2RefusedBodies(t *testing.T) {
	b := newBed(t)
	big := `{"Image":"` + strings.Repeat("x", maxJSON) + `"}`
	for _, c := range []struct {
		name, method, target, headers, body string
		status                              int
		message                             string
	}{
		{"malformed JSON", post, "/containers/create", "", `{"Image":`, 400, "cannot be read"},
		{"no JSON", post, "/containers/create", "", ``, 400, "needs a JSON body"},
		{"null", post, "/containers/create", "", `null`, 400, "needs a JSON body"},
		{"wrong type", post, "/containers/create", "", `{"Image":1}`, 400, "cannot be read"},
		{"trailing data", post, "/containers/create", "", `{"Image":"i"}{"Image":"j"}`, 400, "followed by"},
		{"trailing bracket", post, "/containers/create", "", `{"Image":"i"}]`, 400, "followed by"},
		{"too large", post, "/containers/create", "", big, 413, "larger than"},
		{"form", post, "/containers/create", "Content-Type: application/x-www-form-urlencoded\r\n", `a=b`, 415, "form bodies"},
		{"form on prune", post, "/containers/prune", "Content-Type: application/x-www-form-urlencoded\r\n", `filters={}`, 415, "form bodies"},
		{"form on images prune", post, "/images/prune", "Content-Type: APPLICATION/x-www-form-urlencoded; charset=x\r\n", `filters={}`, 415, "form bodies"},
		{"multipart", post, "/containers/prune", "Content-Type: multipart/form-data; boundary=x\r\n", `--x--`, 415, "form bodies"},
		{"broken form type", post, "/containers/prune", "Content-Type: application/x-www-form-urlencoded; a=\"\r\n", `filters={}`, 415, "form bodies"},
		{"form on attach", post, "/containers/alices/attach", "Content-Type: application/x-www-form-urlencoded\r\n", `stdin=1`, 415, "form bodies"},
		{"start with a body", post, "/containers/alices/start", "", `{"Binds":["/:/x"]}`, 400, "non-empty request body"},
		{"start with a list", post, "/containers/alices/start", "", `[1]`, 400, "cannot be read"},
		{"network JSON", post, "/networks/create", "", `{"Name":"x"} {}`, 400, "followed by"},
		{"filters not JSON", get, "/containers/json?filters=x", "", ``, 400, "filters"},
		{"filters of a wrong type", get, "/containers/json?filters=%7B%22label%22%3A1%7D", "", ``, 400, "filters"},
		{"semicolon in the query", get, "/containers/json?a=b;filters=x", "", ``, 400, "query"},
		{"broken escape in the query", get, "/containers/json?a=%zz", "", ``, 400, "query"},
		{"name like an ID", post, "/containers/create?name=deadbeefcafe", "", `{"Image":"i"}`, 403, "looks like a container ID"},
		{"rename to an ID", post, "/containers/alices/rename?name=%2Fdeadbeefcafe", "", ``, 403, "looks like a container ID"},
		{"checkpoint", post, "/containers/alices/start?checkpoint=x", "", ``, 403, "admins only"},
		{"link removal", del, "/containers/alices?link=1", "", ``, 403, "admins only"},
		{"unknown method", "PATCH", "/containers/json", "", ``, 405, "not part of"},
		{"unclean path", get, "/containers//json", "", ``, 400, "shortest form"},
		{"encoded slash", get, "/containers%2Fjson", "", ``, 400, "encoded slash"},
	} {
		headers := c.headers
		if headers == "" && c.body != "" {
			headers = "Content-Type: application/json\r\n"
		}
		text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: d\r\n%sContent-Length: %d\r\n\r\n%s", c.method, c.target, headers, len(c.body), c.body)
		got := b.raw(t, text)
		if got.status != c.status || !strings.Contains(got.message(), c.message) {
			t.Errorf("%s: %d %q, want %d and %q", c.name, got.status, got.message(), c.status, c.message)
		}
		if rec := b.records.last(t); rec.Verdict != audit.VerdictDeny || rec.Rule == "" {
			t.Errorf("%s: recorded as %s by rule %q", c.name, rec.Verdict, rec.Rule)
		}
	}
	if a := b.engine.take(); len(a) > 0 {
		t.Errorf("arrived: %v", a)
	}
}

// TestARefusalLeavesTheConnectionUsable sends a second request after each
// refusal.
func TestARefusalLeavesTheConnectionUsable(t *testing.T) {
	b := newBed(t)
	c := b.dial(t, "alice")
	br := bufio.NewReader(c)
	for _, text := range []string{
		"GET /containers/bobs/json HTTP/1.1\r\nHost: d\r\n\r\n",
		"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\n\r\n{",
		"GET /containers%2Fjson HTTP/1.1\r\nHost: d\r\n\r\n",
		"PATCH /containers/json HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\n\r\nabc",
		"POST /containers/bobs/attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
	} {
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if got := readReply(t, br, text); got.status < 400 {
			t.Errorf("%.40q: %d", text, got.status)
		}
		if _, err := io.WriteString(c, "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if got := readReply(t, br, "GET"); got.status != 200 {
			t.Errorf("ping after %.40q: %d", text, got.status)
		}
	}
	if a := b.engine.take(); len(a) != 5 {
		t.Errorf("%d requests arrived, want the 5 pings", len(a))
	}
}

// TestI3TheProxysMarksAreSetLast lies about the owner in every way there is.
func TestI3TheProxysMarksAreSetLast(t *testing.T) {
	for _, c := range []struct{ driver, parent string }{
		{"cgroupfs", "/ds01.slice/ds01-student.slice/ds01-student-alice.slice"},
		{"systemd", "ds01-student-alice.slice"},
	} {
		b := newBed(t)
		b.engine.mu.Lock()
		b.engine.driver = c.driver
		b.engine.mu.Unlock()
		// A new index asks again.
		b = newBedOn(t, b.engine)
		b.do(t, post, "/containers/create", `{"Image":"i","Labels":{"ds01.user":"bob","ds01.managed":"no","ds01.protected":"true","ds01.gpu_slot":"GPU-1","ds01.created_at":"1999","ds01.container_type":"x","mine":"1","ds01.interface":"lab"},
			"HostConfig":{"CgroupParent":"/../../evil","Memory":1048576}}`)
		req := created(t, b)
		want := map[string]string{"ds01.user": "alice", "ds01.managed": "true", "ds01.protected": "false", "ds01.container_type": "lab", "mine": "1", "ds01.interface": "lab"}
		for k, v := range want {
			if req.Labels[k] != v {
				t.Errorf("label %s is %q, want %q", k, req.Labels[k], v)
			}
		}
		if _, ok := req.Labels["ds01.gpu_slot"]; ok {
			t.Error("the client's ds01.gpu_slot arrived")
		}
		if _, err := time.Parse(time.RFC3339, req.Labels["ds01.created_at"]); err != nil || strings.HasPrefix(req.Labels["ds01.created_at"], "1999") {
			t.Errorf("ds01.created_at is %q", req.Labels["ds01.created_at"])
		}
		if req.HostConfig.CgroupParent != c.parent || req.HostConfig.Memory != 1<<20 {
			t.Errorf("%s: cgroup parent %q, memory %d", c.driver, req.HostConfig.CgroupParent, req.HostConfig.Memory)
		}
	}
}

// TestI4ASocketGrantsNoMoreThanItsOwnerHas connects as everybody to everything.
func TestI4ASocketGrantsNoMoreThanItsOwnerHas(t *testing.T) {
	b := newBed(t)
	gone := fmt.Errorf("read: %w", peercred.ErrGone)
	for _, c := range []struct {
		name, socket string
		peer         peercred.Peer
		err          error
		user         string // "" means that every request is answered with 403
		admin        bool
	}{
		{"alice on hers", "alice", peercred.Peer{UID: 1001}, nil, "alice", false},
		{"bob on alice's", "alice", peercred.Peer{UID: 1002}, nil, "", false},
		{"root on alice's is alice", "alice", peercred.Peer{UID: 0}, nil, "alice", false},
		{"a root of alice's container on alice's", "alice", peercred.Peer{UID: 0, ContainerID: aliceID}, nil, "alice", false},
		{"a root of bob's container on alice's", "alice", peercred.Peer{UID: 0, ContainerID: bobID}, nil, "", false},
		{"alice's uid in bob's container on alice's", "alice", peercred.Peer{UID: 1001, ContainerID: bobID}, nil, "", false},
		{"any uid in alice's container on alice's", "alice", peercred.Peer{UID: 101000, ContainerID: aliceID}, nil, "alice", false},
		{"any uid in bob's container on alice's", "alice", peercred.Peer{UID: 101000, ContainerID: bobID}, nil, "", false},
		{"any uid in a container of nobody's on alice's", "alice", peercred.Peer{UID: 101000, ContainerID: nobodyID}, nil, "", false},
		{"any uid in a container of something else on alice's", "alice", peercred.Peer{UID: 101000, ContainerID: id("dead")}, nil, "", false},
		{"a container of something else on alice's", "alice", peercred.Peer{UID: 1001, ContainerID: id("dead")}, nil, "alice", false},
		{"nobody knows who", "alice", peercred.Peer{}, gone, "", false},
		{"admin on their own", "admin", peercred.Peer{UID: 1003}, nil, "admin", true},
		{"root on the admin's is no admin", "admin", peercred.Peer{UID: 0}, nil, "admin", false},
		{"the admin's uid in a container is no admin", "admin", peercred.Peer{UID: 1003, ContainerID: id("dead")}, nil, "admin", false},
		{"alice on the shared one", "", peercred.Peer{UID: 1001}, nil, "alice", false},
		{"root on the shared one", "", peercred.Peer{UID: 0}, nil, "root", true},
		{"admin on the shared one", "", peercred.Peer{UID: 1003}, nil, "admin", true},
		{"a system account", "", peercred.Peer{UID: 33}, nil, "", false},
		{"the overflow uid", "", peercred.Peer{UID: 65534}, nil, "", false},
		{"root of bob's container on the shared one is bob", "", peercred.Peer{UID: 0, ContainerID: bobID}, nil, "bob", false},
		{"alice's uid in bob's container on the shared one is bob", "", peercred.Peer{UID: 1001, ContainerID: bobID}, nil, "bob", false},
		{"the admin's uid in bob's container on the shared one is bob", "", peercred.Peer{UID: 1003, ContainerID: bobID}, nil, "bob", false},
		{"a container without an owner on the shared one", "", peercred.Peer{UID: 0, ContainerID: nobodyID}, nil, "", false},
		{"a container that the Engine does not know", "", peercred.Peer{UID: 0, ContainerID: id("dead")}, nil, "", false},
		{"gone from the shared one", "", peercred.Peer{}, gone, "", false},
	} {
		b.peers.set(c.peer, c.err)
		conn := b.dial(t, c.socket)
		br := bufio.NewReader(conn)
		for range 2 {
			text := "POST /swarm/leave HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n"
			if _, err := io.WriteString(conn, text); err != nil {
				t.Fatal(err)
			}
			got := readReply(t, br, text)
			rec := b.records.last(t)
			wantRule := "admins-only"
			switch {
			case c.user == "":
				wantRule = "identify"
			case c.admin:
				wantRule = "relay"
			}
			if rec.Rule != wantRule || rec.Admin != c.admin || (c.user != "" && rec.User != c.user) || (got.status == 200) != c.admin {
				t.Errorf("%s: answered %d as %q (admin %t) by rule %s, want %q (admin %t) by %s: %s", c.name, got.status, rec.User, rec.Admin, rec.Rule, c.user, c.admin, wantRule, rec.Reason)
			}
		}
	}
}

// TestAForgedCgroupIsNobody lets peers claim containers that they are not in.
func TestAForgedCgroupIsNobody(t *testing.T) {
	b := newBed(t)
	b.peers.elsewhere = true
	for _, socket := range []string{"alice", ""} {
		for _, uid := range []uint32{0, 1001} {
			b.peers.set(peercred.Peer{UID: uid, ContainerID: aliceID}, nil)
			c := b.dial(t, socket)
			text := "GET /containers/json HTTP/1.1\r\nHost: d\r\n\r\n"
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
			if got := readReply(t, bufio.NewReader(c), text); got.status != 403 || !strings.Contains(got.message(), "not that container's") {
				t.Errorf("uid %d on %q: %d %s", uid, socket, got.status, got.message())
			}
		}
	}
}

// TestI5AnUpgradeIsTunnelledOnlyAfterTheEngineAgreed takes each answer that an
// Engine can give to an upgrade.
func TestI5AnUpgradeIsTunnelledOnlyAfterTheEngineAgreed(t *testing.T) {
	b := newBed(t)
	attach := "POST /containers/alices/attach?stream=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
	smuggled := "GET /containers/bobs/json HTTP/1.1\r\nHost: d\r\n\r\n"

	// The Engine says no: what follows is the next request, and is checked.
	b.engine.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusConflict) })
	c := b.dial(t, "alice")
	br := bufio.NewReader(c)
	if _, err := io.WriteString(c, attach+smuggled); err != nil {
		t.Fatal(err)
	}
	if got := readReply(t, br, attach); got.status != http.StatusConflict {
		t.Errorf("attach: %d", got.status)
	}
	if got := readReply(t, br, smuggled); got.status != http.StatusForbidden {
		t.Errorf("what followed the refused upgrade: %d", got.status)
	}
	arrived := b.engine.take()
	if len(arrived) != 1 || arrived[0].Header.Get("Upgrade") != "tcp" {
		t.Errorf("arrived: %v", arrived)
	}

	// The Engine agrees: bytes travel both ways, half-closes too.
	b.engine.answer(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		input, _ := io.ReadAll(rw)
		_, _ = fmt.Fprintf(conn, "got %q", input)
	})
	c = b.dial(t, "alice")
	br = bufio.NewReader(c)
	if _, err := io.WriteString(c, attach+"early "); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "tcp" {
		t.Fatalf("attach: %v %v", resp, err)
	}
	if _, err := io.WriteString(c, "late"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(br); err != nil || string(out) != `got "early late"` {
		t.Errorf("the tunnel brought %q, %v", out, err)
	}
	b.engine.take()

	// Nowhere else is the wish to upgrade passed on.
	b.engine.answer(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" || r.Header.Get("Connection") != "" {
			t.Errorf("%s arrived with an upgrade", r.URL.Path)
		}
	})
	for _, target := range []string{"/containers/json", "/images/json", "/containers/alices/json", "/anything", "/containers/alices/anything"} {
		if got := b.raw(t, "GET "+target+" HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); got.status != 200 {
			t.Errorf("%s: %d", target, got.status)
		}
	}
	// And an Engine that switches unasked is not believed.
	b.engine.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusSwitchingProtocols) })
	if got := b.do(t, get, "/containers/alices/json", ""); got.status != http.StatusBadGateway {
		t.Errorf("101 out of nothing: %d", got.status)
	}
}

// TestI6TheVersionIsPinned puts the proxy before an Engine that is newer than
// its types.
func TestI6TheVersionIsPinned(t *testing.T) {
	b := newBed(t)
	b.engine.mu.Lock()
	b.engine.version = "1.99"
	b.engine.mu.Unlock()
	b = newBedOn(t, b.engine)
	b.engine.answer(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.99")
		if strings.HasSuffix(r.URL.Path, "/version") {
			_, _ = io.WriteString(w, `{"ApiVersion":"1.99","MinAPIVersion":"1.24","Components":[{"Name":"Engine","Details":{"ApiVersion":"1.99","GitCommit":"x"}}]}`)
		}
	})
	if got := b.do(t, get, "/_ping", ""); got.header.Get("Api-Version") != maxVersion {
		t.Errorf("ping says %s", got.header.Get("Api-Version"))
	}
	if a := b.engine.take(); len(a) != 1 || a[0].Target != "/v"+maxVersion+"/_ping" {
		t.Errorf("ping arrived as %v", a)
	}
	got := b.do(t, get, "/version", "")
	if strings.Contains(got.body, "1.99") || strings.Count(got.body, `"`+maxVersion+`"`) != 2 || !strings.Contains(got.body, `"GitCommit":"x"`) {
		t.Errorf("version says %s", got.body)
	}
	b.engine.take()
	for _, c := range []struct{ version, message string }{
		{"1.52", "client version 1.52 is too new. Maximum supported API version is " + maxVersion},
		{"2.0", "client version 2.0 is too new. Maximum supported API version is " + maxVersion},
		{"1.23", "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"0", "client version 0 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
	} {
		if got := b.do(t, get, "/v"+c.version+"/containers/json", ""); got.status != 400 || got.message() != c.message {
			t.Errorf("%s: %d %s", c.version, got.status, got.message())
		}
	}
	if a := b.engine.take(); len(a) > 0 {
		t.Errorf("arrived: %v", a)
	}
}

// TestI8FailingOpenIsLoud looks for the record of everything that is let through
// because nobody knows better, and for its end when the switch says deny.
func TestI8FailingOpenIsLoud(t *testing.T) {
	requests := []struct{ method, target, cause string }{
		{get, "/containers/nobodys/json", "unowned-container"},
		{post, "/containers/nobodys/stop", "unowned-container"},
		{get, "/future/thing", "unknown-route"},
		{post, "/containers/alices/future", "unknown-route"},
		{post, "/exec/" + aliceExec + "/future", "unknown-route"},
		{get, "/", "unknown-route"},
	}
	open := newBed(t)
	for _, r := range requests {
		got := open.do(t, r.method, r.target, "")
		if rec := open.records.last(t); got.status != 200 || rec.Verdict != audit.VerdictFailOpen || rec.Rule != r.cause || rec.Reason == "" {
			t.Errorf("%s %s: %d, recorded as %s, %s, %q", r.method, r.target, got.status, rec.Verdict, rec.Rule, rec.Reason)
		}
	}
	if n := len(open.engine.take()); n != len(requests) {
		t.Errorf("%d requests arrived, want %d", n, len(requests))
	}
	closed := newBed(t, withSwitches(Switches{}))
	for _, r := range requests {
		got := closed.do(t, r.method, r.target, "")
		if rec := closed.records.last(t); got.status != 403 || rec.Verdict != audit.VerdictDeny || rec.Rule != r.cause {
			t.Errorf("%s %s with deny: %d, recorded as %s, %s", r.method, r.target, got.status, rec.Verdict, rec.Rule)
		}
	}
	if a := closed.engine.take(); len(a) > 0 {
		t.Errorf("arrived: %v", a)
	}
}

// TestI9AHitAsksNobody counts the questions about ownership.
func TestI9AHitAsksNobody(t *testing.T) {
	b := newBed(t)
	before := b.index.Asked()
	for range 20 {
		b.do(t, get, "/containers/alices/json", "")
		b.do(t, get, "/containers/"+aliceID+"/json", "")
		b.do(t, get, "/containers/"+aliceID[:12]+"/json", "")
		b.do(t, get, "/containers/bobs/json", "")
		b.do(t, post, "/containers/create", `{"Image":"i","HostConfig":{"VolumesFrom":["alices"]}}`)
	}
	if n := b.index.Asked() - before; n != 0 {
		t.Errorf("%d questions went to the Engine", n)
	}
	b.do(t, get, "/exec/"+aliceExec+"/json", "")
	b.do(t, get, "/exec/"+aliceExec+"/json", "")
	if n := b.index.Asked() - before; n != 1 {
		t.Errorf("two looks at an unknown exec asked %d questions, want 1", n)
	}
	// An exec made here is known before the client knows it.
	b.engine.answer(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == post {
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"Id":%q}`, id("e0"))
		}
	})
	b.do(t, post, "/containers/alices/exec", `{"Cmd":["x"]}`)
	b.do(t, get, "/exec/"+id("e0")+"/json", "")
	if n := b.index.Asked() - before; n != 1 {
		t.Errorf("a look at one's own new exec asked %d questions more", n-1)
	}
}

// TestModes sends what full refuses and filters.
func TestModes(t *testing.T) {
	type want struct {
		status  int
		verdict string
		target  string
	}
	create := `{"Image":"i","Extra":1,"Labels":{"ds01.user":"bob"},"HostConfig":{"PidMode":"container:bobs","CgroupParent":"/x"}}`
	for _, c := range []struct {
		mode                 policy.Mode
		foreign, list, fancy want
	}{
		{policy.ModeFull, want{403, audit.VerdictDeny, ""}, want{200, audit.VerdictAllow, "/v1.41/containers/json?filters=" + url.QueryEscape(`{"label":{"ds01.user=alice":true}}`)}, want{400, audit.VerdictDeny, ""}},
		{policy.ModeMonitoring, want{200, audit.VerdictWouldDeny, "/containers/bobs/json"}, want{200, audit.VerdictAllow, "/containers/json"}, want{200, audit.VerdictWouldDeny, "/containers//json"}},
		{policy.ModeDisabled, want{200, audit.VerdictAllow, "/containers/bobs/json"}, want{200, audit.VerdictAllow, "/containers/json"}, want{200, audit.VerdictAllow, "/containers//json"}},
	} {
		b := newBed(t, withMode(c.mode))
		for _, r := range []struct {
			target string
			want   want
		}{{"/containers/bobs/json", c.foreign}, {"/containers/json", c.list}, {"/containers//json", c.fancy}} {
			got := b.do(t, get, r.target, "")
			rec := b.records.last(t)
			target := ""
			if a := b.engine.take(); len(a) == 1 {
				target = a[0].Target
			}
			if (want{got.status, rec.Verdict, target}) != r.want || rec.Mode != c.mode.String() {
				t.Errorf("%v: %s: %d, recorded as %s in mode %s, arrived as %q, want %v", c.mode, r.target, got.status, rec.Verdict, rec.Mode, target, r.want)
			}
		}
		b.do(t, post, "/containers/create", create)
		arrived := b.engine.take()
		switch c.mode {
		case policy.ModeFull:
			if len(arrived) != 0 {
				t.Errorf("full: create arrived: %v", arrived)
			}
		case policy.ModeMonitoring:
			var req container.CreateRequest
			if len(arrived) != 1 || json.Unmarshal([]byte(arrived[0].Body), &req) != nil {
				t.Fatalf("monitoring: create arrived as %v", arrived)
			}
			if req.Labels["ds01.user"] != "alice" || !strings.HasSuffix(req.HostConfig.CgroupParent, "alice.slice") || req.HostConfig.PidMode != "container:bobs" {
				t.Errorf("monitoring: create arrived as %s", arrived[0].Body)
			}
		case policy.ModeDisabled:
			if len(arrived) != 1 || arrived[0].Body != create {
				t.Errorf("disabled: create arrived as %v", arrived)
			}
		}
		if c.mode != policy.ModeFull {
			for _, body := range []string{"{", `{"Image":"` + strings.Repeat("x", maxJSON) + `"}`, ""} {
				b.do(t, post, "/containers/create", body)
				if a := b.engine.take(); len(a) != 1 || a[0].Body != body {
					t.Errorf("%v: a body of %d bytes arrived changed or not at all", c.mode, len(body))
				}
			}
		}
	}
}

// TestAPanicIsOneRequests500 lets the proxy fail in the middle of a request.
func TestAPanicIsOneRequests500(t *testing.T) {
	broken := func(o *Options) { o.Owners = panicky{o.Owners} }
	b := newBed(t, broken)
	if got := b.do(t, get, "/containers/bobs/json", ""); got.status != 500 || !strings.Contains(got.message(), "proxy failed") {
		t.Errorf("%d %s", got.status, got.message())
	}
	if rec := b.records.last(t); rec.Rule != "panic" || b.records.panics != 1 {
		t.Errorf("recorded as %s, %d panics", rec.Rule, b.records.panics)
	}
	if got := b.do(t, get, "/containers/alices/json", ""); got.status != 200 {
		t.Errorf("the next request: %d", got.status)
	}
	if a := b.engine.take(); len(a) != 1 {
		t.Errorf("arrived: %v", a)
	}
}

type panicky struct{ Owners }

func (p panicky) Container(ctx context.Context, user, ref string) (policy.Object, error) {
	if ref == "bobs" {
		panic("a bug")
	}
	return p.Owners.Container(ctx, user, ref)
}

// TestEngineAway stops the Engine and starts it again.
func TestEngineAway(t *testing.T) {
	b := newBed(t, func(o *Options) {
		o.Owners = engine.NewIndex(engine.NewClient("/nonexistent/docker.sock"), o.Log)
		o.Engine = "/nonexistent/docker.sock"
	})
	for _, target := range []string{"/_ping", "/containers/json", "/containers/alices/json", "/anything"} {
		got := b.do(t, get, target, "")
		if got.status != http.StatusBadGateway || !strings.Contains(got.message(), "unix:///nonexistent/docker.sock") {
			t.Errorf("%s: %d %s", target, got.status, got.message())
		}
		if rec := b.records.last(t); rec.Verdict != audit.VerdictError {
			t.Errorf("%s: recorded as %s", target, rec.Verdict)
		}
	}
}
