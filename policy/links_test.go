package policy

import (
	"strings"
	"testing"
)

func TestHostLinks(t *testing.T) {
	confined, open := &Profile{Name: "confined"}, &Profile{Name: "open", OwnershipOnly: true}
	for _, row := range []struct {
		p    *Profile
		open string
		sw   Switch
		want Outcome
	}{
		{confined, "", SwitchDeny, Allow},
		{confined, "", SwitchAllow, Allow},
		{confined, "it cannot", SwitchAllow, FailOpen},
		{confined, "it cannot", SwitchDeny, Refuse},
		{open, "it cannot", SwitchDeny, Allow},
	} {
		v := HostLinks(row.p, "a commit", row.open, "Do not.", row.sw)
		if v.Outcome != row.want {
			t.Errorf("%+v: %+v", row, v)
		}
		if v.Outcome == Refuse && !strings.Contains(v.Reason, "a commit could lead") {
			t.Errorf("%q", v.Reason)
		}
	}
	if v := HostLinks(confined, "a commit", "it cannot", "", 0); v.Allowed() {
		t.Error("the zero switch allows")
	}
}
