// What can be scrolled sideways can be reached by the keyboard.
function reachable() {
  for (const box of document.querySelectorAll("pre, .table-wrapper, .equation")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", reachable);
addEventListener("resize", reachable);
