"use strict";
// A timeline beside a player: a line shows the time, a segment's button seeks.
function connectTimelines(player) {
  for (const button of document.querySelectorAll(".seek")) {
    button.addEventListener("click", () => {
      player.currentTime = Number(button.dataset.seconds);
      player.play().catch(() => {});
    });
  }
  player.addEventListener("timeupdate", () => {
    for (const drawn of document.querySelectorAll(".timeline svg[data-seconds]")) {
      const x = String(1000 * Math.min(1, player.currentTime / Number(drawn.dataset.seconds)));
      const line = drawn.querySelector(".now");
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
  });
}
if (document.querySelector(".seek") && document.getElementById("player")) {
  connectTimelines(document.getElementById("player"));
}
