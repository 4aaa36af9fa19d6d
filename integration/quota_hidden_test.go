package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// committed is what alice's containers are down for.
func committed(t *testing.T) int64 {
	t.Helper()
	var r struct{ Memory struct{ Committed int64 } }
	if got := ask(t, theProxy.Socket(lab.Alice), "GET", "/_ds01/limits", ""); json.Unmarshal([]byte(got.body), &r) != nil || got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	return r.Memory.Committed
}

// TestAFailedStartHidesNothing ends a container for good and then fails to start it: the
// Engine starts it again by itself, and so it counts.
func TestAFailedStartHidesNothing(t *testing.T) {
	tidy(t, "hidden")
	before := committed(t)
	script := filepath.Join(theProxy.Home(lab.Alice), "run1")
	put(t, script, "#!/bin/sh\nexec sleep 1000\n", 0o755, lab.Alice.UID)
	defer os.Remove(script)
	as(t, lab.Alice, "create", "--name", "hidden", "--memory", "64m", "--restart", "unless-stopped", lab.Image, "/run1")
	as(t, lab.Alice, "cp", script, "hidden:/run1")
	as(t, lab.Alice, "start", "hidden")
	as(t, lab.Alice, "exec", "hidden", "rm", "/run1")
	as(t, lab.Alice, "stop", "-t", "0", "hidden")
	const limit64 = 64 << 20
	eventually(t, "what was stopped does not count", func() bool { return committed(t) == before })
	if out, err := theProxy.Docker(limit(t), lab.Alice, "start", "hidden"); err == nil {
		t.Errorf("it started without its program: %s", out)
	}
	eventually(t, "what the Engine may start counts", func() bool { return committed(t) == before+limit64 })
}

// TestGPUsWithoutANumber asks for GPUs in ways that name none, and by a name in capitals.
func TestGPUsWithoutANumber(t *testing.T) {
	d := newDesk(t, theEngine, "{aggregate: {gpu_limit: 1}}", "")
	for _, request := range []string{`{"Capabilities":[["gpu"]]}`, `{"Driver":"nvidia","Count":0}`, `{"Driver":"nvidia","DeviceIDs":["ALL"]}`, `{"Driver":"","DeviceIDs":["0","All"]}`} {
		if _, got := d.create(lab.Alice, `"DeviceRequests":[`+request+`]`); got.status != 403 || !strings.Contains(got.body, "rule gpu-quota") {
			t.Errorf("%s: %d %s", request, got.status, got.body)
		}
	}
}
