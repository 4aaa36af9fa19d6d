package integration

import (
	"encoding/json"
	"strings"
)

// execAttacks go at bob's execs, which have IDs and nothing else.
func execAttacks() []attack {
	return []attack{
		{row: "GET /exec/{}/json", ref: "exec", target: "/exec/_REF_/json", worked: tells("atk-secret-exec")},
		{row: "POST /exec/{}/start", ref: "exec", target: "/exec/_REF_/start", body: `{}`, worked: tells("atk-secret-exec")},
		{row: "POST /exec/{}/start", ref: "exec", name: "detached", target: "/exec/_REF_/start", body: `{"Detach":true}`, worked: ran},
		{row: "POST /exec/{}/start", ref: "exec", name: "with an upgrade", target: "/exec/_REF_/start", body: `{}`, header: []string{"Connection", "Upgrade", "Upgrade", "tcp"}, worked: answers(101)},
		{row: "POST /exec/{}/resize", ref: "tty", target: "/exec/_REF_/resize?h=11&w=22", worked: func(w *world, _ answer) bool {
			var exec struct{ Pid int }
			if err := json.Unmarshal([]byte(w.one("tty")), &exec); err != nil {
				w.t.Fatal(err)
			}
			return w.terminalSize(exec.Pid) == "11x22"
		}},
		{row: "ANY /exec/{}/{}", method: "POST", ref: "exec", target: "/exec/_REF_/anything", body: "{}", rawFails: "there is nothing"},
	}
}

// ran waits for the exec to end, where it was started.
func ran(w *world, a answer) bool {
	if a.status != 200 {
		return false
	}
	eventually(w.t, "bob's exec ends", func() bool { return strings.Contains(w.one("exec"), `"ExitCode":0`) })
	return true
}
