package policy

import "testing"

func TestTopArguments(t *testing.T) {
	p := &Profile{Name: "p"}
	for _, ok := range []string{"", "-ef", "aux", "-e -o pid,user,args", "-eo pid,ppid,%cpu,comm", "-o pid -o user", "auxww", "-o pid,user,cmd"} {
		if v := TopArguments(p, ok); !v.Allowed() {
			t.Errorf("%q: %v", ok, v)
		}
	}
	for _, bad := range []string{
		"e", "-ww e", "-o pid=PID", "-o pid,label", "-o pid=,user", "-o fname", "-o args,pid", "-o comm -o pid", "--sort -start_time", "-o environ", "-p 1", "U bob", "-o pid:5",
		"-C x", "--ppid 1", "-o\tpid", "-o pid;id", "pid", "-eM", "-o label=", "axe",
	} {
		if v := TopArguments(p, bad); v.Allowed() {
			t.Errorf("%q is let through", bad)
		}
	}
	if v := TopArguments(&Profile{OwnershipOnly: true}, "e"); !v.Allowed() {
		t.Error(v)
	}
}
